"""Experiments: train every memory on the same task in the same way, and write down what came out.

    python -m vla_teach.experiments list
    python -m vla_teach.experiments run digits --size cpu --jobs 2
    python -m vla_teach.experiments show digits

`catalogue` says what there is to run, `train` makes one training run, `sweep` many of them and what they add up to,
`results` the file in which that is kept. It needs PyTorch, safetensors and tqdm.
"""
