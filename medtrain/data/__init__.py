"""From files to batches: sources, cases, fingerprint, plan, store, sampler, loader."""
