"""Iterative mining of a web collection for pages like those of a seed (DeepSeekMath, arXiv 2402.03300, section 2.1): `plumbline mine`.

`settings` what is asked for, `collection` the pages that take part, `training` and `rounds` the loop, `domains` what joins the seed,
`results` what is written, `workers` the processes. Pages stay in the files that they come from; in memory are some 20 bytes of each.
"""
