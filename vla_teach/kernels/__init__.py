"""The memory on a GPU, in Triton; one file a step of the story, with the maths in the comments.

token     the paper's kernel: one program a head, token by token; also the decode step
solve     a_t = A_t k_t, many tokens at once
write     errors, states and outputs, chunk by chunk
backward  all gradients in closed form
plan, run how a call is cut into programs, and one autograd.Function of it all; tiles: what they share

Importing these files needs torch and triton; `vla_teach.ops` imports them when they are asked for.
"""
