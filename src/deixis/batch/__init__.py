"""Many films: a manifest in, one folder a film and results.jsonl out; on one machine or many; resumable."""
