"""The paper's experiments, one command each: `prong paper NAME`.

Read `experiment` first (what an experiment is), then `plan` (its stages and their folder),
`paper_stages` (what each stage does) and `one_training` (the loop). An experiment is one module
`NAME_experiment`, which builds an `Experiment`, and one module `NAME_report`, which makes a `Sheet`
of its results; it is listed in `experiments`. New images go into `paper_images.READERS`, a new
method into `compared_methods.METHODS`. An experiment whose trainings need a loop of their own gives
another function as `train`: it takes the scale, the images and a `TrainingTask`, tells `task.say`
of each `CurveMark`, and returns a `Curve`.
"""
