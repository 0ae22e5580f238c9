"""The published runs of Gravity, again: `python -m benchmarks.paper`.

VGG16 and VGG19 at 32 × 32, on MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, with Gravity, Adam and
RMSprop. `settings` says what a run is, `network` and `start` what is trained and from where, the
modules in_keras and in_torch how, `training` runs it; `published` has the published numbers, and
`report` shows ours beside them.
"""
