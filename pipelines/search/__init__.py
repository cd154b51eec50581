"""Search: trainings with other settings, and which of them is best on the validation split."""
