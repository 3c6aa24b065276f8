"""Object stores with compare-and-swap: the protocol, its errors, and one module per backend."""
