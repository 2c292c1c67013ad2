"""Pretrained image and text encoders: they return FeatureMaps and TextFeatures."""
