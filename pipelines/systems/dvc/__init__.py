"""DVC: stages that are run or taken from its cache, and its remote."""
