"""Cross-validation: every fold trained, judged together, and used together."""
