"""What is learnt from measurements: rates over time, linear costs."""
