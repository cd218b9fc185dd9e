"""Random views of patches, in whole batches and on their device: geometry, intensity, regions."""
