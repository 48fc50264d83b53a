"What the project costs in time and memory, beside others"
