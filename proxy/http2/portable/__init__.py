"""The engine on python-hyper h2: it needs no compiler and is always there. Small rather than fast.

`frames` cuts what was read into frames and checks their form, `library` is all that knows h2 and hpack, `sending` has
the commands and the order in which frames leave, and `engine` decides what a received frame means.
"""
