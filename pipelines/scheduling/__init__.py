"""Scheduled runs of the main job: the deployment, its worker, its entry flow and its alerts."""
