"What is done with a model that is made: lineage, erasure, receipts, searches, the command line"
