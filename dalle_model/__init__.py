"""A DALL-E-style text-to-image model as a plain PyTorch library: no orchestration, no buckets."""
