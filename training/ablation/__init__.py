"""The ablations of the CasPL paper (arXiv 2409.17805), section 4.5, on any labelled data set."""
