"""From a trained model and a scan to a label map: sliding window, post-processing, predictor."""
