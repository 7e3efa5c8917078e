"""Published numbers, to stand beside measured ones in a column of their own: other data, budgets and hardware.

Unmarked ones are of the systems' own papers. The others are of
  C  "Deep Generative Modelling: A Comparative Review" (Bond-Taylor et al. 2021, arXiv 2103.04922, table 1);
  F  later tables of flows, as in FFJORD (Grathwohl et al. 2018, arXiv 1810.01367);
  P  the project pytorch-generative: dynamic binarisation, no validation split, the test images binarised anew.
"""

PUBLISHED = {
    "ddpm": "CIFAR-10: <= 3.75 bits/dim, FID 3.17",
    "vae": "binarised MNIST: <= 86.8 nats (P); CIFAR-10: <= 4.54 bits/dim, FID 106.4 (C)",
    "vq_prior": "CIFAR-10: <= 4.67 bits/dim (VQ-VAE, C)",
    "pixelcnn": "binarised MNIST: 81.3 nats; CIFAR-10: 3.14 bits/dim",
    "gated_pixelcnn": "binarised MNIST: 81.5 nats (P); CIFAR-10: 3.03 bits/dim, FID 65.9 (C)",
    "realnvp": "MNIST: 1.06 bits/dim (F); CIFAR-10: 3.49 bits/dim",
    "glow": "MNIST: 1.05 bits/dim (F); CIFAR-10: 3.35 bits/dim, FID 46.0 (C)",
    "dcgan": "CIFAR-10: FID 37.1 (C)",
}
LEGEND = (
    "Published: of the papers, or (C) of Bond-Taylor et al. 2021, (F) of FFJORD's table, (P) of pytorch-generative."
)
