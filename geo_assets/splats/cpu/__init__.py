"""The embedded trainer and renderer: 3D Gaussian splatting on a CPU, compiled by numba.

Bottom to top: ``compiled`` (how kernels are compiled), ``projection`` and ``blending`` (the image and its gradient),
``rasteriser`` (both with their buffers), ``loss``, ``adam``, ``stereo`` (depth of the photos), ``surfels`` (Gaussians on
the surfaces that it finds), ``initial`` (what training starts from), ``density``, ``exposure``, ``photos``,
``checkpoint``, ``training``.
"""
