"""Pretrained eyes and ears: they return FeatureMaps and TextFeatures."""
