"How checkpoints are scored and compared"
