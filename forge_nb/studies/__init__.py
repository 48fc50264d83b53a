"Comparisons and extensions beside the pipeline"
