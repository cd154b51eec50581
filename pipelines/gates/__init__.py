"""What a version must meet to become champion: the list is `judging.GATES`."""
