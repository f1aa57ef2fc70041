// The memory in the browser: the functions of vla_teach's reference.py, streams.py and explorers.py under their own
// names. Matrices are flat Float64Arrays, row by row. A test draws both and compares them.
"use strict";

const vlaMemory = (function () {
  // ---- linear algebra: x, y vectors [n]; A, M [n, n]; S [V, K]

  function dot(x, y) {
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
    return sum;
  }

  const norm = (x) => Math.sqrt(dot(x, x));

  function matvec(S, x, rows) {
    const n = x.length, out = new Float64Array(rows);
    for (let i = 0, at = 0; i < rows; i++) {
      let sum = 0;
      for (let j = 0; j < n; j++) sum += S[at++] * x[j];
      out[i] = sum;
    }
    return out;
  }

  // S += scale x y^T, in place
  function addOuter(S, x, y, scale) {
    const n = y.length;
    for (let i = 0, at = 0; i < x.length; i++) {
      const c = scale * x[i];
      for (let j = 0; j < n; j++) S[at++] += c * y[j];
    }
  }

  function identity(n, scale) {
    const I = new Float64Array(n * n);
    for (let i = 0; i < n; i++) I[i * n + i] = scale;
    return I;
  }

  // Eigenvalues of a symmetric matrix by Jacobi's rotations, smallest first.
  function eigenvalues(M, n) {
    const a = Float64Array.from(M);
    for (let sweep = 0; sweep < 30; sweep++) {
      let off = 0, all = 0;
      for (let i = 0; i < n * n; i++) all += a[i] * a[i];
      for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) off += a[p * n + q] ** 2;
      if (off <= 1e-26 * all) break;
      for (let p = 0; p < n; p++) {
        for (let q = p + 1; q < n; q++) {
          const apq = a[p * n + q];
          if (apq === 0) continue;
          const theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
          const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
          const c = 1 / Math.hypot(t, 1), s = t * c;
          for (let i = 0; i < n; i++) {
            const x = a[i * n + p], y = a[i * n + q];
            a[i * n + p] = c * x - s * y;
            a[i * n + q] = s * x + c * y;
          }
          for (let i = 0; i < n; i++) {
            const x = a[p * n + i], y = a[q * n + i];
            a[p * n + i] = c * x - s * y;
            a[q * n + i] = s * x + c * y;
          }
        }
      }
    }
    return Float64Array.from({ length: n }, (_, i) => a[i * n + i]).sort();
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

  function correlatedStream(T, K, V, correlation, direction, seed) {
    const shared = unitRows(normal(K, seed, 0), K, Math.sqrt(K)), own = normal(T * K, seed, 1);
    const a = Math.sqrt(correlation), b = Math.sqrt(1 - correlation);
    const k = rows(unitRows(own.map((x, i) => a * shared[i % K] + b * x), K), K);
    const v = rows(unitRows(normal(T * V, seed, 2), V), V);
    if (direction === "along the key") return { k, v, u: k };
    const W = normal(K * K, seed, 3);
    return { k, v, u: k.map((row) => unitRows(matvec(W, row, K), K, 1 / Math.sqrt(K))) };
  }

  // ---- reference.py; A and S are changed in place

  function shermanMorrison(A, u) {
    const Au = matvec(A, u, u.length);
    addOuter(A, Au, Au, -1 / (1 + dot(u, Au)));
  }

  function writeGain(A, k, gain) {
    const a = matvec(A, k, k.length);
    if (gain === "least_squares") return a;
    const by = gain === "unit" ? norm(a) : dot(k, a);
    return by === 0 ? a : a.map((x) => x / by);
  }

  function write(S, k, v, g) {
    const Sk = matvec(S, k, v.length);
    addOuter(S, v.map((x, i) => x - Sk[i]), g, 1);
  }

  // ---- explorers.py

  const OFF_THE_CHART = 1e6;

  // |S_t| at `times` for a memory whose step changes S [V, K] by token t; null once it is too large to draw, since what
  // comes after is mostly rounding. `read` turns S into the matrix to measure.
  function normsOf(times, V, K, step, read = (S) => S) {
    const S = new Float64Array(V * K), last = times[times.length - 1], out = [];
    let onTheChart = true;
    for (let t = 0, next = 0; t < last; t++) {
      step(S, t);
      onTheChart &&= norm(S) < OFF_THE_CHART;
      if (t + 1 === times[next]) {
        out.push(onTheChart ? norm(read(S)) : null);
        next++;
      }
    }
    return out;
  }

  function gridOf(T, points = 200) {
    const times = new Set();
    for (let i = 0; i < points; i++) times.add(Math.round(1 + (T - 1) * i / (points - 1)));
    return [...times];
  }

  function penaltyView({ lambda_0, K, T, correlation, gain, direction, seed, t }) {
    const V = 16, { k, v, u } = correlatedStream(T, K, V, correlation, direction, seed), times = gridOf(T);
    const A = identity(K, 1 / lambda_0), A_rls = identity(K, 1 / lambda_0), A_exact = identity(K, 1 / lambda_0);
    let A_t = A;
    const norms = {
      "linear attention": normsOf(times, V, K, (S, i) => addOuter(S, v[i], k[i], 1)),
      "DeltaNet": normsOf(times, V, K, (S, i) => write(S, k[i], v[i], k[i])),
      "VLA": normsOf(times, V, K, (S, i) => {
        shermanMorrison(A, u[i]);
        write(S, k[i], v[i], writeGain(A, k[i], gain));
        if (i + 1 === t) A_t = Float64Array.from(A);
      }),
      "recursive least squares": normsOf(times, V, K, (S, i) => {
        shermanMorrison(A_rls, k[i]);
        write(S, k[i], v[i], writeGain(A_rls, k[i], "least_squares"));
      }),
      "exact least squares": normsOf(times, V, K, (targets, i) => {
        shermanMorrison(A_exact, k[i]);
        shermanMorrison(A_exact, u[i]);
        addOuter(targets, v[i], k[i], 1);
      }, (targets) => rows(targets, K).flatMap((row) => Array.from(matvec(A_exact, row, K)))),
    };
    const M = identity(K, 0);
    for (let i = 0; i < t; i++) addOuter(M, u[i], u[i], 1);
    const spectrum = eigenvalues(M, K);
    return {
      times,
      norms,
      M,
      A: A_t.map((x, i) => lambda_0 * x - (i % (K + 1) === 0 ? 1 : 0)),
      cond: (spectrum[K - 1] + lambda_0) / (spectrum[0] + lambda_0),
    };
  }

  return { uniform, normal, correlatedStream, shermanMorrison, writeGain, write, eigenvalues, penaltyView, OFF_THE_CHART };
})();
