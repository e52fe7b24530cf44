"""Commands for those who develop the curriculum; the labs need none of them."""
