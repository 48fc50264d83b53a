"What everything stands on: the project, its notebooks, git and DVC, the runner of stages"
