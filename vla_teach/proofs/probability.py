"""Statements of "What is variational here".

One row of the memory is a vector s of weights, as a column; y holds the targets, the rows of X the keys. M/sigma^2 is
the prior's precision, H = X^T X + M.
"""

import numpy as np
import sympy as sp

from vla_teach import reference
from vla_teach.proofs.statement import Statement, above, apart, zero
from vla_teach.proofs.words import matrices, rewrite, trace

s, st, y, yt, X, Xt, k, kt, alpha, alphat = matrices("s s^T y y^T X X^T k k^T alpha alpha^T")
M, A, H, Hi, Pi, Sigma, W, P, Pt, e, et = matrices("M A H H^-1 Pi Sigma W P P^T e e^T")
m, mt, mu, mut = matrices("m m^T mu mu^T")
SYMMETRIC = (M, A, H, Hi, Pi, Sigma, W)
a, x, ratio = sp.symbols("a x lambda_t", positive=True)
ONE = sp.S.One


def coefficients(sign=1):
    """Completing the square: a^T M a / 2 - s^T a less (a - A s)^T M (a - A s) / 2 is -s^T A s / 2, free of a."""
    gap, gapt = alpha - sign * A * s, alphat - sign * st * A
    rest = (alphat * M * alpha - gapt * M * gap) / 2 - st * alpha + st * A * s / 2
    return trace(rewrite(rest, [(M * A, ONE), (A * M, ONE)]), SYMMETRIC)


def coefficients_measured(data, sign=1):
    """No other coefficients have a smaller cost."""
    s = data.rng.normal(size=len(data.M))
    best = sign * data.A @ s

    def cost(a):
        return a @ data.M @ a / 2 - s @ a

    return max(above(cost(best), cost(best + size * data.rng.normal(size=len(s)))) for size in (1e-3, 1e-2, 0.1, 1) * 3)


def posterior(sign=1, penalty=1):
    """-2 sigma^2 log p(s, y) = |y - X s|^2 + s^T M s is (s - m)^T H (s - m) + a constant; m = H^-1 X^T y."""
    mean, meant = sign * Hi * Xt * y, sign * yt * X * Hi
    energy = (yt - st * Xt) * (y - X * s) + st * M * s
    left = energy - (st - meant) * H * (s - mean) - yt * y + yt * X * Hi * Xt * y
    left = rewrite(left, [(H * Hi, ONE), (Hi * H, ONE), (H, Xt * X + penalty * M)])
    return trace(left, SYMMETRIC)


def log_normal(x, mean, covariance):
    """Log density of a Gaussian, straight from its formula."""
    gap, (_, size) = x - mean, np.linalg.slogdet(2 * np.pi * covariance)
    return -(gap @ np.linalg.solve(covariance, gap) + size) / 2


def posterior_measured(data, sign=1, penalty=1):
    """Bayes' rule at random points: prior times likelihood, over posterior, is the evidence wherever it is taken."""
    sigma2, one, y = 0.7, np.eye(len(data.k)), data.v[:, 0]
    H = data.k.T @ data.k + penalty * data.M
    mean = sign * np.linalg.solve(H, data.k.T @ y)
    evidence = log_normal(y, 0 * y, sigma2 * (one + data.k @ data.A @ data.k.T))
    found = []
    for _ in range(3):
        s = mean + data.rng.normal(size=len(mean)) * 0.1
        joint = log_normal(s, 0 * s, sigma2 * data.A) + log_normal(y, data.k @ s, sigma2 * one)
        found.append(apart(joint - log_normal(s, mean, sigma2 * np.linalg.inv(H)), evidence))
    return max(found)


def kalman(one=1):
    """A_t k less A k / (1 + k^T A k), where A_t is A after a Sherman-Morrison step along k."""
    after = A - A * k * kt * A / (1 + a)
    return rewrite(after * k - A * k / (one + a), [(kt * A * k, a)])


def kalman_measured(data, one=1):
    """A Kalman filter in its textbook form against the recurrence, token by token: mean, covariance."""
    sigma2, mean, P = 0.3, np.zeros(data.k.shape[1]), 0.3 * np.eye(data.k.shape[1]) / data.lambda_0
    for k, target in zip(data.k, data.v[:, 0], strict=True):
        gain = P @ k / (one * sigma2 + k @ P @ k)
        mean, P = mean + gain * (target - k @ mean), P - np.outer(gain, k @ P)
    _, state = reference.vla_recurrent(data.k, data.k, data.v[:, :1], data.k, data.lambda_0, gain="least_squares")
    return max(apart(mean, state.S[0]), apart(P, sigma2 * state.A))


def gate(beta=1 / (1 + ratio)):
    """The gradient of |S - P|_M^2 + |v - S k|^2 / (lambda_t x) at S = P + beta e (A k)^T / x, with x = k^T A k; and
    lambda_t = exp(-w) gives the sigmoid of w."""
    w = sp.Symbol("w", real=True)
    step = beta * e * kt * A / x
    left = rewrite(step * M - (e - step * k) * kt / (ratio * x), [(A * M, ONE), (kt * A * k, x)])
    sigmoid = zero(beta.subs(ratio, sp.exp(-w)) - 1 / (1 + sp.exp(-w)))
    return [left, sigmoid]


def gate_measured(data, offset=1):
    """A Kalman step with the noise lambda_t k^T A k against the interpolating write, scaled by 1 / (1 + lambda_t)."""
    k, v, P = data.k[0], data.v[0], data.S
    noisy = float(10 ** data.rng.uniform(-3, 3))
    variance = k @ data.A @ k
    kalman = np.outer(v - P @ k, data.A @ k) / (noisy * variance + variance)
    g = reference.write_gain(data.A, k, "interpolate") / (offset + noisy)
    return apart(kalman, np.outer(v - P @ k, g))


def elbo(sign=1):
    """Two facts. Under N(m, Sigma) the mean of (s - mu)^T H (s - mu) is (m - mu)^T H (m - mu) + tr(H Sigma), because
    that of s s^T is m m^T + Sigma. And x - 1 - log x (x an eigenvalue of H Sigma) has its only minimum, 0, at 1."""
    square = trace(H * W - H * m * mut - H * mu * mt + H * mu * mut, SYMMETRIC)  # W stands for the mean of s s^T
    square = square.subs(trace(H * W, SYMMETRIC), trace(H * m * mt, SYMMETRIC) + sign * trace(H * Sigma, SYMMETRIC))
    wanted = trace((mt - mut) * H * (m - mu), SYMMETRIC) + trace(H * Sigma, SYMMETRIC)
    f = x - 1 - sign * sp.log(x)
    return [zero(square - wanted), f.subs(x, 1), zero(f.diff(x) - (x - 1) / x)]


def elbo_measured(data, sign=1, penalty=1):
    """The bound from its definition: never above the log evidence, and equal to it at the posterior."""
    sigma2, one, y = 0.7, np.eye(len(data.k)), data.v[:, 0]
    n, d = data.k.shape
    H = data.k.T @ data.k + penalty * data.M
    evidence = log_normal(y, 0 * y, sigma2 * (one + data.k @ data.A @ data.k.T))

    def bound(m, C):
        likelihood = np.sum((y - data.k @ m) ** 2) + np.trace(data.k @ C @ data.k.T)
        prior = m @ data.M @ m + np.trace(data.M @ C) + sigma2 * np.linalg.slogdet(2 * np.pi * sigma2 * data.A)[1]
        entropy = np.linalg.slogdet(2 * np.pi * np.e * C)[1] / 2
        return -(likelihood + prior) / (2 * sigma2) - n / 2 * np.log(2 * np.pi * sigma2) + sign * entropy

    mean, C = np.linalg.solve(H, data.k.T @ y), sigma2 * np.linalg.inv(H)
    other = C @ (np.eye(d) + data.k.T @ data.k / n)
    others = [(mean + 0.1, C), (mean, 2 * C), (0 * mean, (other + other.T) / 2), (mean, sigma2 * data.A)]
    return max(apart(bound(mean, C), evidence), *(above(bound(*q), evidence) for q in others))


STATEMENTS = (
    Statement(
        label="prop-posterior",
        title="The memory is a posterior mean",
        given=r"noise $\mathcal{N}(0, \sigma^2)$, prior $\mathcal{N}(0, \sigma^2 A_t)$ for each row of $S$",
        says=(
            r"p(s \mid v_1, \dots, v_t) = \mathcal{N}\big( H_t^{-1} \textstyle\sum_i k_i y_i ,\; \sigma^2 H_t^{-1} "
            r"\big) ."
        ),
        symbols=posterior,
        numbers=posterior_measured,
        by_hand="a density whose logarithm is a quadratic form is a Gaussian",
        twins={"minus the mean": dict(sign=-1), "the prior counted twice": dict(penalty=2)},
    ),
    Statement(
        label="prop-kalman",
        title="The recurrence is a Kalman filter",
        given=r"$u_t = k_t$, noise $\sigma^2$, prior covariance $\sigma^2 A_{t-1}$",
        says=r"A_t k_t = \frac{A_{t-1} k_t}{1 + k_t^\top A_{t-1} k_t}",
        symbols=kalman,
        numbers=kalman_measured,
        twins={"the noise counted twice": dict(one=2)},
    ),
    Statement(
        label="prop-elbo",
        title="The bound and its optimum",
        given=r"any Gaussian $q = \mathcal{N}(m, C)$ with $C$ positive definite",
        says=(
            r"\log p(y) - \mathcal{L}(m, C) = \tfrac{1}{2} \Big[ \tfrac{1}{\sigma^2} (m - \mu)^\top H (m - \mu) + "
            r"\operatorname{tr} Z - \log\det Z - K \Big] \;\ge\; 0 , \qquad Z = H C / \sigma^2 ."
        ),
        symbols=elbo,
        numbers=elbo_measured,
        by_hand=r"trace and determinant of $Z$ are the sum and the product of its eigenvalues, which are positive",
        twins={"the entropy's sign flipped": dict(sign=-1), "the prior counted twice": dict(penalty=2)},
    ),
    Statement(
        label="prop-coefficients",
        title="Coefficient recovery",
        given=r"$M$ positive definite",
        says=(
            r"\alpha^* = \operatorname*{arg\,min}_\alpha \; \tfrac12\, \alpha^\top M \alpha - b^\top \alpha = "
            r"M^{-1} b ."
        ),
        symbols=coefficients,
        numbers=coefficients_measured,
        by_hand="the completed square is never negative",
        twins={"minus the solution": dict(sign=-1)},
    ),
    Statement(
        label="prop-gate",
        title="A penalty for each token is a write gate",
        given=r"$A$ positive definite, $k_t \ne 0$, noise variance $\lambda_t\, k_t^\top A k_t$ with $\lambda_t \ge 0$",
        says=(
            r"\frac{A k_t}{\lambda_t\, k_t^\top A k_t + k_t^\top A k_t} = \beta_t \, \frac{A k_t}{k_t^\top A k_t} "
            r", \qquad \beta_t = \frac{1}{1 + \lambda_t} ."
        ),
        symbols=gate,
        numbers=gate_measured,
        twins={"1 - lambda_t for 1 / (1 + lambda_t)": dict(beta=1 - ratio), "the 1 left out": dict(offset=0)},
    ),
)
