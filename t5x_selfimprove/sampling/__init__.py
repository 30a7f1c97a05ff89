"""Drawing completions: logit transforms and the sampler."""
