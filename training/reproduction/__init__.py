"""The CasPL paper's tables on its data sets: check, estimate, run, results file, comparison."""
