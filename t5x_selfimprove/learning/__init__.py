"""From kept samples to updated parameters: lessons, losses, optimizers, learners."""
