"""Looks at the request log: have inputs and answers drifted from what the model was held to?"""
