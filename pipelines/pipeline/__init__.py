"""The main job: its stages in order, the flow that runs them, and the report."""
