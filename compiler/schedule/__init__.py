"""Graph to kernels: fusion, lowering to loop IR, memory plan."""
