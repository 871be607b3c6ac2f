"""The master's and the zygote's side: a pure model, one wait, and the effects of its actions."""
