"""open_clip's CLIP with prompts as inputs: the model that training and service share."""
