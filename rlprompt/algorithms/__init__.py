"""How policies learn: losses as pure functions, diagnostics of collapse, and engines that minimise the losses."""
