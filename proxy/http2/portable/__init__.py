"""The engine on python-hyper h2: it needs no compiler and is always there. Small rather than fast.

`engine` decides what a received frame means, `sending` what leaves and when; `library` has all that is changed of h2.
"""
