// The memory in the browser: the functions of vla_teach's reference.py, streams.py and explorers/ under their own
// names. Matrices are flat Float64Arrays, row by row. A test draws both and compares them.
"use strict";

const vlaMemory = (function () {
  // ---- linear algebra: x, y, out vectors [n]; M [n, n]; S [V, K]; A [K, K] symmetric, only its lower triangle is kept.
  // The loops that every token goes through take two rows at a time, so V and K are even: the next sum need not wait for
  // the last, and what both rows use is read once.

  function dot(x, y) {
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
    return sum;
  }

  const norm = (x) => Math.sqrt(dot(x, x));

  // S x, into out
  function matvec(S, x, out) {
    const n = x.length;
    for (let i = 0, row = 0; i < out.length; i += 2, row += 2 * n) {
      const under = row + n;
      let sum = 0, other = 0;
      for (let j = 0; j < n; j++) {
        sum += S[row + j] * x[j];
        other += S[under + j] * x[j];
      }
      out[i] = sum;
      out[i + 1] = other;
    }
    return out;
  }

  // A -= g p^T, in place, and A x for the new A, into out. One pass: each entry is read once and used twice. g p^T is
  // symmetric, and so is g p^T + h q^T below.
  function updateAndApply(A, g, p, x, out) {
    const n = x.length;
    for (let i = 0; i < n; i += 2) {
      const row = i * n, under = row + n, g0 = g[i], g1 = g[i + 1], x0 = x[i], x1 = x[i + 1];
      let sum = 0, other = 0;
      for (let j = 0; j < i; j++) {
        const a = A[row + j] - g0 * p[j], b = A[under + j] - g1 * p[j];
        A[row + j] = a;
        A[under + j] = b;
        sum += a * x[j];
        other += b * x[j];
        out[j] += a * x0 + b * x1;
      }
      const a = (A[row + i] -= g0 * p[i]), b = (A[under + i] -= g1 * p[i]), c = (A[under + i + 1] -= g1 * p[i + 1]);
      out[i] = sum + a * x0 + b * x1;
      out[i + 1] = other + b * x0 + c * x1;
    }
  }

  // The same for A -= g p^T + h q^T, and for two vectors, x and y.
  function updateAndApplyTwice(A, g, p, h, q, x, out, y, also) {
    const n = x.length;
    for (let i = 0; i < n; i += 2) {
      const row = i * n, under = row + n, g0 = g[i], g1 = g[i + 1], h0 = h[i], h1 = h[i + 1];
      const x0 = x[i], x1 = x[i + 1], y0 = y[i], y1 = y[i + 1];
      let sum = 0, other = 0, more = 0, last = 0;
      for (let j = 0; j < i; j++) {
        const a = A[row + j] - g0 * p[j] - h0 * q[j], b = A[under + j] - g1 * p[j] - h1 * q[j];
        A[row + j] = a;
        A[under + j] = b;
        sum += a * x[j];
        other += b * x[j];
        more += a * y[j];
        last += b * y[j];
        out[j] += a * x0 + b * x1;
        also[j] += a * y0 + b * y1;
      }
      const a = (A[row + i] -= g0 * p[i] + h0 * q[i]), b = (A[under + i] -= g1 * p[i] + h1 * q[i]);
      const c = (A[under + i + 1] -= g1 * p[i + 1] + h1 * q[i + 1]);
      out[i] = sum + a * x0 + b * x1;
      out[i + 1] = other + b * x0 + c * x1;
      also[i] = more + a * y0 + b * y1;
      also[i + 1] = last + b * y0 + c * y1;
    }
  }

  // A += scale x x^T, in place
  function addSquare(A, x, scale) {
    const n = x.length;
    for (let i = 0; i < n; i++) {
      const row = i * n, c = scale * x[i];
      for (let j = 0; j <= i; j++) A[row + j] += c * x[j];
    }
  }

  // S += x y^T, in place. Returns |S|, which costs little here.
  function addOuter(S, x, y) {
    const n = y.length;
    let squared = 0;
    for (let i = 0, at = 0; i < x.length; i++) {
      const c = x[i];
      for (let j = 0; j < n; j++, at++) {
        const s = S[at] + c * y[j];
        S[at] = s;
        squared += s * s;
      }
    }
    return Math.sqrt(squared);
  }

  function identity(n, scale) {
    const I = new Float64Array(n * n);
    for (let i = 0; i < n; i++) I[i * n + i] = scale;
    return I;
  }

  function mirror(A, n) {
    for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) A[j * n + i] = A[i * n + j];
    return A;
  }

  // The lower triangular L with M = L L^T, from the lower triangle of M.
  function cholesky(M, n) {
    const L = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = M[i * n + j];
        for (let m = 0; m < j; m++) sum -= L[i * n + m] * L[j * n + m];
        L[i * n + j] = i === j ? Math.sqrt(sum) : sum / L[j * n + j];
      }
    }
    return L;
  }

  // Solves L L^T x = y from entry `first` on, in place, where y is 0 before it.
  function solve(L, x, first = 0) {
    const n = x.length;
    for (let i = first; i < n; i++) {
      let sum = x[i];
      for (let j = first; j < i; j++) sum -= L[i * n + j] * x[j];
      x[i] = sum / L[i * n + i];
    }
    for (let i = n - 1; i >= first; i--) {
      const y = (x[i] /= L[i * n + i]);
      for (let j = first; j < i; j++) x[j] -= L[i * n + j] * y;
    }
    return x;
  }

  // The inverse of a positive definite matrix, column by column.
  function inverse(M, n) {
    const L = cholesky(M, n), out = new Float64Array(n * n);
    for (let column = 0; column < n; column++) {
      const x = new Float64Array(n);
      x[column] = 1;
      solve(L, x, column);
      for (let i = column; i < n; i++) out[i * n + column] = x[i];
    }
    return mirror(out, n);
  }

  // The smallest and the largest eigenvalue of a symmetric matrix: Householder's reflections make it tridiagonal,
  // then bisection counts how many eigenvalues lie below a number.
  function extremes(M, n) {
    const a = Float64Array.from(M), side = new Float64Array(n); // side[i]: the entry beside the diagonal, row i
    const w = new Float64Array(n), aw = new Float64Array(n);
    for (let column = 0; column < n - 1; column++) {
      let squared = 0;
      for (let i = column + 1; i < n; i++) squared += (w[i] = a[i * n + column]) ** 2;
      const length = w[column + 1] > 0 ? -Math.sqrt(squared) : Math.sqrt(squared);
      side[column + 1] = length;
      w[column + 1] -= length;
      const half = squared - length * a[(column + 1) * n + column]; // |w|^2 / 2
      if (half <= 0) continue;
      let both = 0;
      for (let i = column + 1; i < n; i++) {
        let sum = 0;
        for (let j = column + 1; j < n; j++) sum += a[i * n + j] * w[j];
        aw[i] = sum / half;
        both += aw[i] * w[i];
      }
      for (let i = column + 1; i < n; i++) aw[i] -= both / (2 * half) * w[i];
      for (let i = column + 1; i < n; i++) {
        for (let j = column + 1; j < n; j++) a[i * n + j] -= w[i] * aw[j] + aw[i] * w[j];
      }
    }
    let reach = 0; // no eigenvalue is larger in size
    for (let i = 0; i < n; i++) {
      reach = Math.max(reach, Math.abs(a[i * n + i]) + Math.abs(side[i]) + (i + 1 < n ? Math.abs(side[i + 1]) : 0));
    }
    const below = (x) => {
      let count = 0, q = 1;
      for (let i = 0; i < n; i++) {
        q = a[i * n + i] - x - side[i] * side[i] / q;
        if (q === 0) q = 1e-300;
        if (q < 0) count++;
      }
      return count;
    };
    const find = (many) => { // the smallest number with `many` eigenvalues below it
      let low = -reach * (1 + 1e-12) - 1e-300, high = -low;
      for (let i = 0; i < 60; i++) {
        const middle = (low + high) / 2;
        if (below(middle) >= many) high = middle;
        else low = middle;
      }
      return (low + high) / 2;
    };
    return [find(1), find(n)];
  }

  // ---- streams.py

  function uniform(n, seed, lane) {
    const out = new Float64Array(n);
    const start = Math.imul(seed, 0x85ebca77) + Math.imul(lane, 0xc2b2ae3d);
    for (let i = 0; i < n; i++) {
      let x = (Math.imul(i + 1, 0x9e3779b9) + start) >>> 0;
      x = Math.imul(x ^ (x >>> 16), 0x85ebca6b) >>> 0;
      x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35) >>> 0;
      x = (x ^ (x >>> 16)) >>> 0;
      out[i] = (x + 0.5) / 4294967296;
    }
    return out;
  }

  function normal(n, seed, lane) {
    const a = uniform(n, seed, 2 * lane), b = uniform(n, seed, 2 * lane + 1);
    return a.map((x, i) => Math.sqrt(-2 * Math.log(x)) * Math.cos(2 * Math.PI * b[i]));
  }

  function unitRows(x, width, scale = 1) {
    for (let at = 0; at < x.length; at += width) {
      const row = x.subarray(at, at + width), length = norm(row);
      for (let i = 0; i < width; i++) row[i] *= scale / length;
    }
    return x;
  }

  const rows = (x, width) => Array.from({ length: x.length / width }, (_, t) => x.subarray(t * width, (t + 1) * width));

  // A function of parameters that keeps its last results, by the parameters it depends on. So a slider computes anew
  // what depends on it, and the rest is at hand.
  function remember(names, compute, keep = 3) {
    const kept = new Map();
    return (p) => {
      const key = names.map((name) => p[name]).join("|");
      if (!kept.has(key)) {
        if (kept.size >= keep) kept.delete(kept.keys().next().value);
        kept.set(key, compute(p));
      }
      return kept.get(key);
    };
  }

  const drawn = remember(["n", "seed", "lane"], ({ n, seed, lane }) => normal(n, seed, lane), 8);

  function correlatedStream(T, K, V, correlation, direction, seed) {
    const draws = (n, lane) => drawn({ n, seed, lane }); // kept, so not to be changed in place
    const shared = unitRows(draws(K, 0).slice(), K, Math.sqrt(K)), own = draws(T * K, 1);
    const a = Math.sqrt(correlation), b = Math.sqrt(1 - correlation);
    const k = rows(unitRows(own.map((x, i) => a * shared[i % K] + b * x), K), K);
    const v = rows(unitRows(draws(T * V, 2).slice(), V), V);
    if (direction === "along the key") return { k, v, u: k };
    const W = draws(K * K, 3);
    return { k, v, u: k.map((row) => unitRows(matvec(W, row, new Float64Array(K)), K, 1 / Math.sqrt(K))) };
  }

  // ---- reference.py; S is changed in place

  // Walks over the inverse penalties of M = lambda_0 I + sum of u u^T by Sherman-Morrison. Token by token, `next` gives
  // A u for the token's u and the new A, and, where keys are asked for, A k. The arrays it returns are used again.
  function inverses(lambda_0, u, k = null) {
    const K = u[0].length, A = identity(K, 1 / lambda_0), none = new Float64Array(K);
    let now = new Float64Array(K), next = u[0].map((x) => x / lambda_0), t = 0;
    const Ak = new Float64Array(K), Au = new Float64Array(K);
    return () => {
      [now, next] = [next, now]; // A u before the update
      const denominator = 1 + dot(u[t], now), after = u[Math.min(t + 1, u.length - 1)];
      for (let i = 0; i < K; i++) Au[i] = now[i] / denominator;
      if (k) updateAndApplyTwice(A, Au, now, none, none, after, next, k[t], Ak);
      else updateAndApply(A, Au, now, after, next);
      t++;
      return { Au, Ak };
    };
  }

  // The same for M = lambda_0 I + sum of k k^T + u u^T: A k and A u for the token's k and u and the new A.
  function inversesOfPairs(lambda_0, k, u) {
    const K = u[0].length, A = identity(K, 1 / lambda_0), Ak = new Float64Array(K), Au = new Float64Array(K);
    let p = new Float64Array(K), q = new Float64Array(K), t = 0;
    let nextP = k[0].map((x) => x / lambda_0), nextQ = u[0].map((x) => x / lambda_0);
    return () => {
      [p, nextP, q, nextQ] = [nextP, p, nextQ, q]; // A k and A u before the update
      const a = 1 + dot(k[t], p), b = dot(k[t], q), c = 1 + dot(u[t], q), det = a * c - b * b;
      for (let i = 0; i < K; i++) {
        Ak[i] = (c * p[i] - b * q[i]) / det;
        Au[i] = (a * q[i] - b * p[i]) / det;
      }
      t = Math.min(t + 1, u.length - 1);
      updateAndApplyTwice(A, Ak, p, Au, q, k[t], nextP, u[t], nextQ);
      return { Au, Ak };
    };
  }

  function scaleGain(g, k, gain) {
    if (gain === "least_squares") return g;
    const by = gain === "unit" ? norm(g) : dot(k, g);
    if (by !== 0) for (let i = 0; i < g.length; i++) g[i] /= by;
    return g;
  }

  // S += (v - S k) g^T. Returns the new |S|, which costs little here.
  function write(S, k, v, g) {
    const n = k.length;
    let squared = 0, also = 0;
    for (let i = 0, row = 0; i < v.length; i += 2, row += 2 * n) {
      const under = row + n;
      let a = v[i], b = v[i + 1];
      for (let j = 0; j < n; j++) {
        a -= S[row + j] * k[j];
        b -= S[under + j] * k[j];
      }
      for (let j = 0; j < n; j++) {
        const s = S[row + j] + a * g[j], r = S[under + j] + b * g[j];
        S[row + j] = s;
        S[under + j] = r;
        squared += s * s;
        also += r * r;
      }
    }
    return Math.sqrt(squared + also);
  }

  // S += (v - S k) g^T - S u h^T. Returns the new |S|.
  function writePair(S, k, v, g, u, h) {
    const n = k.length;
    let squared = 0;
    for (let i = 0, row = 0; i < v.length; i++, row += n) {
      let a = v[i], b = 0;
      for (let j = 0; j < n; j++) {
        a -= S[row + j] * k[j];
        b -= S[row + j] * u[j];
      }
      for (let j = 0; j < n; j++) {
        const s = S[row + j] + a * g[j] + b * h[j];
        S[row + j] = s;
        squared += s * s;
      }
    }
    return Math.sqrt(squared);
  }

  // ---- explorers/

  const OFF_THE_CHART = 1e6, V = 16;

  // The tokens at which curves are drawn. No number lies halfway, where NumPy would round otherwise.
  function gridOf(T, points = 200) {
    const times = new Set();
    for (let i = 0; i < points; i++) times.add(Math.round(1 + (T - 1) * i / (points - 1)));
    return [...times];
  }

  // |S_t| at the tokens of the grid for a memory whose step changes S [V, K] by token t and returns |S|. Null from the
  // first token at which it is too large to draw, since what comes after is mostly rounding.
  function normsOf({ T, K }, step) {
    const times = gridOf(T), S = new Float64Array(V * K), out = new Array(times.length).fill(null);
    for (let t = 0, next = 0; t < T; t++) {
      const length = step(S, t);
      if (!(length < OFF_THE_CHART)) break;
      if (t + 1 === times[next]) out[next++] = length;
    }
    return out;
  }

  const KEYS = ["T", "K", "correlation", "seed"];

  const streamOf = remember([...KEYS, "direction"], ({ T, K, correlation, direction, seed }) =>
    correlatedStream(T, K, V, correlation, direction, seed));

  // A k for every token where u = k, of which recursive least squares and VLA make their gains.
  const gainsAlong = remember([...KEYS, "lambda_0"], (p) => {
    const { k } = streamOf(p), next = inverses(p.lambda_0, k);
    return k.map(() => next().Au.slice());
  });

  const curves = {
    "linear attention": remember(KEYS, (p) => {
      const { k, v } = streamOf(p);
      return normsOf(p, (S, t) => addOuter(S, v[t], k[t]));
    }),
    "DeltaNet": remember(KEYS, (p) => {
      const { k, v } = streamOf(p);
      return normsOf(p, (S, t) => write(S, k[t], v[t], k[t]));
    }),
    "VLA": remember([...KEYS, "direction", "lambda_0", "gain"], (p) => {
      const { k, v, u } = streamOf(p);
      if (u === k) {
        const gains = gainsAlong(p), g = new Float64Array(p.K);
        return normsOf(p, (S, t) => {
          g.set(gains[t]);
          return write(S, k[t], v[t], scaleGain(g, k[t], p.gain));
        });
      }
      const next = inverses(p.lambda_0, u, k);
      return normsOf(p, (S, t) => write(S, k[t], v[t], scaleGain(next().Ak, k[t], p.gain)));
    }),
    "recursive least squares": remember([...KEYS, "lambda_0"], (p) => {
      const { k, v } = streamOf(p), gains = gainsAlong(p);
      return normsOf(p, (S, t) => write(S, k[t], v[t], gains[t]));
    }),
    // The exact recurrence, with A the inverse of H: a token counts (k, v) and (u, 0). Where u = k these are one pair.
    "exact least squares": remember([...KEYS, "direction", "lambda_0"], (p) => {
      const { k, v, u } = streamOf(p);
      if (u === k) {
        const longer = k.map((row) => row.map((x) => x * Math.SQRT2)), shorter = v.map((row) => row.map((x) => x / Math.SQRT2));
        const next = inverses(p.lambda_0, longer);
        return normsOf(p, (S, t) => write(S, longer[t], shorter[t], next().Au));
      }
      const next = inversesOfPairs(p.lambda_0, k, u);
      return normsOf(p, (S, t) => {
        const { Ak, Au } = next();
        return writePair(S, k[t], v[t], Ak, u[t], Au);
      });
    }),
  };

  // The state norms of all memories.
  function stateNorms(p) {
    return Object.fromEntries(Object.entries(curves).map(([memory, norms]) => [memory, norms(p)]));
  }

  // The sum of u u^T over the first t tokens, and its smallest and largest eigenvalue.
  const penaltyAt = remember([...KEYS, "direction", "t"], (p) => {
    const { u } = streamOf(p), M = identity(p.K, 0);
    for (let t = 0; t < p.t; t++) addSquare(M, u[t], 1);
    mirror(M, p.K);
    return { M, ends: extremes(M, p.K) };
  });

  const inverseAt = remember([...KEYS, "direction", "t", "lambda_0"], (p) => {
    const { M } = penaltyAt(p), A = inverse(M.map((x, i) => x / p.lambda_0 + (i % (p.K + 1) === 0 ? 1 : 0)), p.K);
    for (let i = 0; i < A.length; i += p.K + 1) A[i] -= 1;
    return A;
  });

  function penaltyView(p) {
    const { M, ends } = penaltyAt(p);
    return {
      times: gridOf(p.T),
      norms: stateNorms(p),
      M,
      A: inverseAt(p),
      cond: (ends[1] + p.lambda_0) / (ends[0] + p.lambda_0),
    };
  }

  const normsView = (p) => ({ times: gridOf(p.T), norms: stateNorms(p) });

  // For each memory its state [V, K] after each of the first n pairs, u = k; `seen(memory, S, t)` is called for each.
  // The three gains share their A k; and what does not depend on lambda_0 is asked for by itself.
  function learn(k, v, n, lambda_0, seen) {
    const K = k[0].length, g = new Float64Array(K), next = inverses(lambda_0, k);
    const gains = { "VLA": "unit", "VLA, interpolating": "interpolate", "recursive least squares": "least_squares" };
    const states = Object.entries(gains).map(([memory, gain]) => [memory, gain, new Float64Array(V * K)]);
    for (let t = 0; t < n; t++) {
      const { Au } = next();
      for (const [memory, gain, S] of states) {
        g.set(Au);
        write(S, k[t], v[t], scaleGain(g, k[t], gain));
        seen(memory, S, t + 1);
      }
    }
  }

  function learnFlat(k, v, n, seen) {
    const K = k[0].length, sum = new Float64Array(V * K), S = new Float64Array(V * K);
    for (let t = 0; t < n; t++) {
      addOuter(sum, v[t], k[t]);
      seen("linear attention", sum, t + 1);
      write(S, k[t], v[t], k[t]);
      seen("DeltaNet", S, t + 1);
    }
  }

  function recall(S, k, v, n, measure) {
    const answer = new Float64Array(V);
    let wrong = 0, all = 0, right = 0;
    for (let t = 0; t < n; t++) {
      matvec(S, k[t], answer);
      if (measure === "read-back error") {
        for (let i = 0; i < V; i++) wrong += (v[t][i] - answer[i]) ** 2;
        all += dot(v[t], v[t]);
        continue;
      }
      let best = -Infinity, at = 0;
      for (let s = 0; s < n; s++) {
        const score = dot(answer, v[s]);
        if (score > best) [best, at] = [score, s];
      }
      right += at === t;
    }
    return measure === "read-back error" ? wrong / all : right / n;
  }

  const CORRELATIONS = Array.from({ length: 20 }, (_, i) => 0.05 * i);

  // 64 pairs; the first n are what a stream of n would have.
  const pairsOf = remember(["correlation", "K", "seed"], ({ correlation, K, seed }) =>
    correlatedStream(64, K, V, correlation, "along the key", seed), 25);

  // Two parts of a recall curve: that of the memories without a penalty, and that of those with lambda_0.
  function recallCurves(names, along) {
    const flat = remember(names, (p) => along(p, learnFlat));
    const priced = remember([...names, "lambda_0"], (p) =>
      along(p, (k, v, n, seen) => learn(k, v, n, p.lambda_0, seen)));
    return (p) => ({ ...flat(p), ...priced(p) });
  }

  const recallAlongPairs = recallCurves(["correlation", "K", "measure", "seed"], (p, run) => {
    const { k, v } = pairsOf(p), out = {};
    run(k, v, 64, (memory, S, n) => {
      if (n % 4 === 0) (out[memory] ??= []).push(recall(S, k, v, n, p.measure));
    });
    return out;
  });

  const recallAlongCorrelations = recallCurves(["n", "K", "measure", "seed"], (p, run) => {
    const out = {};
    for (const correlation of CORRELATIONS) {
      const { k, v } = pairsOf({ ...p, correlation });
      run(k, v, p.n, (memory, S, n) => {
        if (n === p.n) (out[memory] ??= []).push(recall(S, k, v, n, p.measure));
      });
    }
    return out;
  });

  function recallView(p) {
    const by_pairs = recallAlongPairs(p);
    return {
      pairs: Array.from({ length: 16 }, (_, i) => 4 * (i + 1)),
      by_pairs,
      correlations: CORRELATIONS,
      by_correlation: recallAlongCorrelations(p),
      here: Object.fromEntries(Object.entries(by_pairs).map(([memory, y]) => [memory, y[p.n / 4 - 1]])),
    };
  }

  // ---- the adversary, width 2

  const STEPS = 60;

  // The spectral norm of [[a, b], [c, d]].
  function norm2(a, b, c, d) {
    const squares = a * a + b * b + c * c + d * d, det = a * d - b * c;
    return Math.sqrt((squares + Math.sqrt(Math.max(0, squares * squares - 4 * det * det))) / 2);
  }

  const attack = remember(["lambda_0", "choices", "penalised", "seed"], ({ lambda_0, choices, penalised, seed }) => {
    const draws = uniform(2 * STEPS * 200, seed, 40), start = penalised === "along the key" ? 0 : STEPS * 200;
    const found = { product: [], bound: [], keys: [], u: [], gains: [], products: [] };
    let A = [1 / lambda_0, 0, 1 / lambda_0], P = [1, 0, 0, 1], logDet = 0; // A: three of its entries, row by row
    for (let t = 0; t < STEPS; t++) {
      const all = [];
      let most = 0;
      for (let i = 0; i < choices; i++) {
        const x = 2 * Math.PI * draws[t * 200 + i], y = 2 * Math.PI * draws[start + t * 200 + i];
        const k = [Math.cos(x), Math.sin(x)], u = [Math.cos(y), Math.sin(y)];
        const Au = [A[0] * u[0] + A[1] * u[1], A[1] * u[0] + A[2] * u[1]], a = u[0] * Au[0] + u[1] * Au[1];
        const B = [A[0] - Au[0] * Au[0] / (1 + a), A[1] - Au[0] * Au[1] / (1 + a), A[2] - Au[1] * Au[1] / (1 + a)];
        const g = [B[0] * k[0] + B[1] * k[1], B[1] * k[0] + B[2] * k[1]], length = Math.hypot(g[0], g[1]);
        g[0] /= length, g[1] /= length;
        const Pk = [P[0] * k[0] + P[1] * k[1], P[2] * k[0] + P[3] * k[1]];
        const Q = [P[0] - Pk[0] * g[0], P[1] - Pk[0] * g[1], P[2] - Pk[1] * g[0], P[3] - Pk[1] * g[1]];
        const size = norm2(...Q);
        most = Math.max(most, size);
        all.push({ k, u, g, a, B, Q, size });
      }
      const best = all.find(({ size }) => size >= (1 - 1e-9) * most); // rounding must not choose among equals
      [A, P, logDet] = [best.B, best.Q, logDet + Math.log1p(best.a)];
      found.product.push(best.size);
      found.bound.push(Math.exp(logDet / 2));
      found.keys.push(best.k);
      found.u.push(best.u);
      found.gains.push(best.g);
      found.products.push(P);
    }
    return found;
  });

  function adversaryView(p) {
    const { products, ...found } = attack(p), P = products[p.t - 1], ellipse = [[], []];
    for (let i = 0; i <= 72; i++) {
      const x = Math.cos(2 * Math.PI * i / 72), y = Math.sin(2 * Math.PI * i / 72);
      ellipse[0].push(x * P[0] + y * P[2]);
      ellipse[1].push(x * P[1] + y * P[3]);
    }
    return { ...found, random: attack({ ...p, choices: 1 }).product, ellipse };
  }

  // ---- how far a write is turned

  const LATER = 32, DEGREES = 180 / Math.PI;
  const LAMBDAS = Array.from({ length: 21 }, (_, i) => 10 ** (0.3 * i - 3));

  // The angle between two vectors, exact for small ones too, in degrees.
  function between(x, y) {
    const a = 1 / norm(x), b = 1 / norm(y);
    let apart = 0, together = 0;
    for (let i = 0; i < x.length; i++) {
      apart += (a * x[i] - b * y[i]) ** 2;
      together += (a * x[i] + b * y[i]) ** 2;
    }
    return 2 * Math.atan2(Math.sqrt(apart), Math.sqrt(together)) * DEGREES;
  }

  // Mean and largest angle over the keys after token t, and Kantorovich's limit.
  function anglesAt(p) {
    const { k } = streamOf(p), { M, ends } = penaltyAt(p);
    const L = cholesky(M.map((x, i) => x / p.lambda_0 + (i % (p.K + 1) === 0 ? 1 : 0)), p.K);
    const turned = k.slice(p.t).map((key) => between(key, solve(L, Float64Array.from(key))));
    const kappa = (p.lambda_0 + ends[1]) / (p.lambda_0 + ends[0]);
    const limit = Math.atan2(kappa - 1, 2 * Math.sqrt(kappa)) * DEGREES;
    return [turned.reduce((sum, x) => sum + x) / turned.length, Math.max(...turned), limit];
  }

  const ANGLE = ["t", "K", "correlation", "direction", "seed"];
  const anglesOverLambda = remember(ANGLE, (p) => LAMBDAS.map((lambda_0) => anglesAt({ ...p, lambda_0 })));

  const actualAngles = remember([...ANGLE, "lambda_0"], (p) => {
    const { k, u } = streamOf(p), next = inverses(p.lambda_0, u, k);
    return k.map((key) => between(key, next().Ak));
  });

  function angleView(p) {
    const all = { ...p, T: p.t + LATER }, over = anglesOverLambda(all);
    return {
      lambdas: LAMBDAS,
      mean: over.map((x) => x[0]),
      largest: over.map((x) => x[1]),
      limit: over.map((x) => x[2]),
      times: Array.from({ length: all.T }, (_, i) => i + 1),
      actual: actualAngles(all),
      here: anglesAt(all),
    };
  }

  // ---- a whole step, width 2: F^n = [[p, b], [0, 1]]

  const ANGLES = Array.from({ length: 37 }, (_, i) => 5 * i);

  function stepPower(angle, beta, n) {
    const one = 1 - beta * Math.cos(angle), side = -beta * Math.sin(angle);
    let sum = 0;
    for (let i = 0; i < n; i++) sum += one ** i;
    const p = one ** n, b = side * sum;
    return [p, b, norm2(p, b, 0, 1)];
  }

  function stepView({ angle, beta, n }) {
    const turn = angle / DEGREES, [p, b, stretch] = stepPower(turn, beta, n), ellipse = [[], []];
    const at = -Math.atan2(2 * Math.abs(b), p * p + b * b - 1) / 2;
    for (let i = 0; i <= 72; i++) {
      const x = Math.cos(2 * Math.PI * i / 72), y = Math.sin(2 * Math.PI * i / 72);
      ellipse[0].push(x * p);
      ellipse[1].push(x * b + y);
    }
    const over = ANGLES.map((degrees) => stepPower(degrees / DEGREES, beta, n));
    return {
      ellipse,
      longest: [Math.cos(at) * p, Math.cos(at) * b + Math.sin(at)],
      write: [Math.cos(turn), Math.sin(turn)],
      angles: ANGLES,
      stretch: over.map((x) => x[2]),
      second: over.map((x) => x[0]),
      here: [stretch, p],
    };
  }

  // ---- a sequence in chunks

  const stepsOf = (T, C) => Math.ceil(T / C) + 1;

  function chunksView({ T, C, step }) {
    const NEVER = 0, LATER = 1, NOW = 2, INSIDE = 3, STATE = 4, ANSWER = 5;
    const state = (kind, when) => (when > step ? LATER : when === step ? NOW : kind);
    const cells = Array.from({ length: T }, (_, t) => {
      const chunk = Math.floor(t / C), row = new Array(T + 2).fill(NEVER);
      for (let s = 0; s <= t; s++) {
        row[s] = Math.floor(s / C) === chunk ? state(INSIDE, 1) : state(STATE, 1 + chunk);
      }
      row[T + 1] = state(ANSWER, stepsOf(T, C));
      return row;
    });
    const sizes = Array.from({ length: T }, (_, i) => i + 1), half = (n) => n * (n + 1) / 2;
    return {
      cells,
      sizes,
      pairs: sizes.map((size) => Math.floor(T / size) * half(size) + half(T % size)),
      steps: sizes.map((size) => stepsOf(T, size)),
    };
  }

  // ---- the stream of digits; data: { images, labels }, characters, from digit_stream.py

  const EVERY = 10, WIDE = 64, CLASSES = 10, LEARNED = 240;

  const digitsOf = (() => {
    let kept = null;
    return (data) => {
      if (kept?.data === data) return kept;
      const images = Float64Array.from(data.images, (x) => parseInt(x, 17)), labels = Array.from(data.labels, Number);
      return (kept = { data, images: rows(images, WIDE), labels, k: rows(unitRows(images.slice(), WIDE), WIDE) });
    };
  })();

  const largestAt = (x) => x.indexOf(Math.max(...x));

  // What every memory has learned: `right` as in digits_stream.py, and VLA's state after 10, 20, ... digits.
  const readDigits = remember(["order", "lambda_0", "gain"], ({ order, lambda_0, gain, data }) => {
    const { k, labels } = digitsOf(data), stream = Array.from({ length: LEARNED }, (_, t) => t);
    if (order === "sorted by digit") stream.sort((a, b) => labels[a] - labels[b]); // stable, like NumPy's
    const x = stream.map((t) => k[t]), v = stream.map((t) => Float64Array.from({ length: CLASSES }, (_, d) => +(d === labels[t])));
    const answer = new Float64Array(CLASSES), right = {}, states = [];
    const rule = (memory, step) => {
      const S = new Float64Array(CLASSES * WIDE);
      right[memory] = [];
      for (let t = 0; t < LEARNED; t++) {
        step(S, t);
        if ((t + 1) % EVERY) continue;
        let found = 0;
        for (let i = LEARNED; i < k.length; i++) found += largestAt(matvec(S, k[i], answer)) === labels[i];
        right[memory].push(found / (k.length - LEARNED));
        if (memory === "VLA") states.push(S.slice());
      }
    };
    rule("linear attention", (S, t) => addOuter(S, v[t], x[t]));
    rule("DeltaNet", (S, t) => write(S, x[t], v[t], x[t]));
    for (const [memory, by] of [["VLA", gain], ["recursive least squares", "least_squares"]]) {
      const next = inverses(lambda_0, x);
      rule(memory, (S, t) => write(S, x[t], v[t], scaleGain(next().Au, x[t], by)));
    }
    return { right, states };
  });

  function digitsView(p) {
    const { images, labels, k } = digitsOf(p.data), { right, states } = readDigits(p), i = LEARNED + p.asked - 1;
    const S = states[p.t / EVERY - 1];
    return {
      seen: right.VLA.map((_, i) => EVERY * (i + 1)),
      right,
      rows: rows(S, WIDE),
      image: rows(images[i], 8),
      label: labels[i],
      answers: matvec(S, k[i], new Float64Array(CLASSES)),
    };
  }

  return {
    uniform, normal, correlatedStream, penaltyView, normsView, recallView, adversaryView, angleView, between,
    stepView, stepsOf, chunksView, digitsView, largestAt, OFF_THE_CHART,
  };
})();
