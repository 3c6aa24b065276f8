"""Model families: kmer, ESM-2, and whatever the user brings."""
