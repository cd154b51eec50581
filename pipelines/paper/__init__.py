"""The paper's experiments, one command each: `prong paper NAME`."""
