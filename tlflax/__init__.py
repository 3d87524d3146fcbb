"""Transfer learning from folders of labelled images, in JAX/Flax."""
