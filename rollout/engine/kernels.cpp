// The parts of a decoding step between its matrix products, each one call without Python's lock: torch's operations for them take about
// twenty calls a layer, whose dispatch is as slow as the work. rollout/engine/kernels.py has what each computes, and the same in torch.
//
// Numbers are float or bfloat16 in memory and float in registers (vectors.h).

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

template <class T>
INLINE void rms_norm(const float *x, const float *weight, T *out, int64_t rows, int64_t width, float epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
    Floats squares = {};
    for (int64_t i = 0; i < width; i += LANES) {
      Floats part = load(x + i);
      squares += part * part;
    }
    float scale = 1.0f / __builtin_sqrtf(sum(squares) / width + epsilon);
    for (int64_t i = 0; i < width; i += LANES)
      store(out + i, load(x + i) * scale * load(weight + i));
  }
}

template <class T>
INLINE void rotate(T *heads, const float *cos, const float *sin, int64_t rows, int64_t count, int64_t stride, int64_t size) {
  int64_t half = size / 2;
  for (int64_t row = 0; row < rows; ++row, heads += stride, cos += size, sin += size)
    for (int64_t head = 0; head < count; ++head)
      for (int64_t i = 0; i < half; i += LANES) {
        T *low = heads + head * size + i, *high = low + half;
        Floats a = load(low), b = load(high);
        store(low, a * load(cos + i) + b * load(sin + i));
        store(high, b * load(cos + half + i) + a * load(sin + half + i));
      }
}

template <class T> INLINE void silu_mul(const T *gate_up, T *out, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, gate_up += 2 * width, out += width)
    for (int64_t i = 0; i < width; i += LANES) {
      Floats gate = load(gate_up + i), negative = -gate;
      Floats exp = exponential(negative > all(88.0f) ? all(88.0f) : negative);
      store(out + i, gate / (1.0f + exp) * load(gate_up + width + i));
    }
}

// Products of N queries, float[N][size], with `count` keys -> scores[n][0 .. count - 1], with `stride` between the n.
template <int N, class T>
INLINE void score(const float *query, const T *keys, int64_t count, int64_t size, float *scores, int64_t stride) {
  constexpr int AT_ONCE = 4;
  int64_t j = 0;
  for (; j + AT_ONCE <= count; j += AT_ONCE) {
    Floats products[N][AT_ONCE] = {};
    for (int64_t i = 0; i < size; i += LANES) {
      Floats part[AT_ONCE];
      for (int k = 0; k < AT_ONCE; ++k)
        part[k] = load(keys + (j + k) * size + i);
      for (int n = 0; n < N; ++n) {
        Floats q = load(query + n * size + i);
        for (int k = 0; k < AT_ONCE; ++k)
          products[n][k] += q * part[k];
      }
    }
    for (int n = 0; n < N; ++n) {
      Quarter found = sums(products[n]);
      std::memcpy(scores + n * stride + j, &found, sizeof found);
    }
  }
  for (; j < count; ++j)
    for (int n = 0; n < N; ++n) {
      Floats products = {};
      for (int64_t i = 0; i < size; i += LANES)
        products += load(query + n * size + i) * load(keys + j * size + i);
      scores[n * stride + j] = sum(products);
    }
}

// out[n] += sum_j weights[n][j] values[j], over VECTORS x 16 numbers of each value
template <int N, int VECTORS, class T>
INLINE void mix(const float *weights, int64_t stride, const T *values, int64_t count, int64_t size, float *out) {
  Floats total[N][VECTORS];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v)
      total[n][v] = load(out + n * size + v * LANES);
  for (int64_t j = 0; j < count; ++j) {
    Floats value[VECTORS];
    for (int v = 0; v < VECTORS; ++v)
      value[v] = load(values + j * size + v * LANES);
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v)
        total[n][v] += weights[n * stride + j] * value[v];
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v)
      store(out + n * size + v * LANES, total[n][v]);
}

template <class T> struct Piece { // keys and values that a row sees, one after the other
  const T *keys, *values;
  int64_t count;
};

// Attention of N queries over the pieces.
template <int N, class T>
INLINE void attend_heads(const T *query, const Piece<T> *pieces, int64_t size, float scale, T *out, float *buffer) {
  int64_t count = pieces[0].count + pieces[1].count;
  int64_t stride = (count + LANES - 1) / LANES * LANES;
  float *queries = buffer, *mixed = queries + N * size, *scores = mixed + N * size;
  for (int64_t i = 0; i < N * size; i += LANES) {
    store(queries + i, load(query + i) * scale);
    store(mixed + i, Floats{});
  }
  float *of_piece = scores;
  for (int p = 0; p < 2; of_piece += pieces[p++].count)
    score<N>(queries, pieces[p].keys, pieces[p].count, size, of_piece, stride);
  float totals[N];
  for (int n = 0; n < N; ++n)
    totals[n] = exponentials(scores + n * stride, count);
  of_piece = scores;
  for (int p = 0; p < 2; of_piece += pieces[p++].count) {
    int64_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES)
      mix<N, 4>(of_piece, stride, pieces[p].values + i, pieces[p].count, size, mixed + i);
    for (; i < size; i += LANES)
      mix<N, 1>(of_piece, stride, pieces[p].values + i, pieces[p].count, size, mixed + i);
  }
  for (int n = 0; n < N; ++n)
    for (int64_t i = 0; i < size; i += LANES)
      store(out + n * size + i, load(mixed + n * size + i) / totals[n]);
}

struct Attention { // see kernels.py
  int64_t query, key, value, states_stride, own, own_rows, own_width, shared, groups, shared_width;
  int64_t order, at, prefix, group, rows, key_heads, queries_per_key, size, window, out;
  double scale;
};

// Whether all rows lie within their buffers; otherwise nothing is done.
template <class T> INLINE bool attend(const Attention &a, float *buffer) {
  const int64_t *order = (const int64_t *)a.order, *at = (const int64_t *)a.at;
  const int64_t *prefix = (const int64_t *)a.prefix, *group = (const int64_t *)a.group;
  const int64_t own_size = a.own_rows * a.key_heads * a.own_width * a.size;
  const int64_t shared_size = a.groups * a.key_heads * a.shared_width * a.size;
  const int64_t row_bytes = a.size * sizeof(T);
  for (int64_t row = 0; row < a.rows; ++row)
    if (order[row] < 0 || order[row] >= a.own_rows || at[row] < 0 || at[row] >= a.own_width || prefix[row] < 0 ||
        prefix[row] > a.shared_width || group[row] < 0 || group[row] >= a.groups)
      return false;
  for (int64_t n = 0; n < a.rows; ++n) {
    const int64_t row = order[n];
    for (int64_t head = 0; head < a.key_heads; ++head) {
      T *own_keys = (T *)a.own + (row * a.key_heads + head) * a.own_width * a.size;
      std::memcpy(own_keys + at[row] * a.size, (const T *)a.key + row * a.states_stride + head * a.size, row_bytes);
      std::memcpy(own_keys + own_size + at[row] * a.size, (const T *)a.value + row * a.states_stride + head * a.size, row_bytes);
      const T *shared_keys = (const T *)a.shared + (group[row] * a.key_heads + head) * a.shared_width * a.size;
      int64_t own_first = 0, shared_first = 0;
      if (a.window) {
        own_first = std::max<int64_t>(0, at[row] - a.window + 1);
        shared_first = std::min(prefix[row], std::max<int64_t>(0, prefix[row] + at[row] - a.window + 1));
      }
      const int64_t shared_from = shared_first * a.size, own_from = own_first * a.size;
      const Piece<T> pieces[2] = {
          {shared_keys + shared_from, shared_keys + shared_size + shared_from, prefix[row] - shared_first},
          {own_keys + own_from, own_keys + own_size + own_from, at[row] + 1 - own_first},
      };
      int64_t first = head * a.queries_per_key;
      const T *query = (const T *)a.query + row * a.states_stride + first * a.size;
      T *out = (T *)a.out + (row * a.key_heads * a.queries_per_key + first) * a.size;
      int64_t left = a.queries_per_key;
      for (; left >= 4; left -= 4, query += 4 * a.size, out += 4 * a.size)
        attend_heads<4>(query, pieces, a.size, a.scale, out, buffer);
      if (left == 3)
        attend_heads<3>(query, pieces, a.size, a.scale, out, buffer);
      else if (left == 2)
        attend_heads<2>(query, pieces, a.size, a.scale, out, buffer);
      else if (left == 1)
        attend_heads<1>(query, pieces, a.size, a.scale, out, buffer);
    }
  }
  return true;
}

// SplitMix64 (Steele, Lea, Flood 2014) as a function of seed and counter, in [0, 1): rollout/engine/draw.py.
INLINE double uniform(uint64_t seed, uint64_t counter) {
  uint64_t z = seed + (counter + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return ((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

constexpr int64_t BLOCK = 16 * LANES; // logits whose sum is kept

struct Draws { // see kernels.py
  const int64_t *seeds, *counters;
  int64_t rows, columns, *tokens;
  float *logprobs, temperature;
};

// Inverse CDF sampling. weights, sums: room for a row's numbers and for the sum of each block of them.
template <class T> INLINE void draw(const T *logits, const Draws &d, float *weights, double *sums) {
  const bool is_greedy = d.temperature == 0;
  const int64_t vectors = d.columns / LANES * LANES, blocks = (d.columns + BLOCK - 1) / BLOCK;
  for (int64_t row = 0; row < d.rows; ++row, logits += d.columns) {
    Floats largest = all(-INFINITY);
    for (int64_t i = 0; i < vectors; i += LANES) {
      Floats x = load(logits + i);
      if (!is_greedy)
        x /= d.temperature;
      store(weights + i, x);
      largest = larger(x, largest);
    }
    float most = largest[0];
    for (int i = 1; i < LANES; ++i)
      most = std::max(most, largest[i]);
    for (int64_t i = vectors; i < d.columns; ++i) {
      weights[i] = is_greedy ? value(logits + i) : value(logits + i) / d.temperature;
      most = std::max(most, weights[i]);
    }
    for (int64_t i = d.columns; i < blocks * BLOCK; ++i)
      weights[i] = -INFINITY;
    const int64_t best = is_greedy ? std::find(weights, weights + d.columns - 1, most) - weights : 0;
    const float of_best = weights[best];
    double total = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      Doubles of_block = {};
      for (int64_t i = b * BLOCK; i < (b + 1) * BLOCK; i += LANES) {
        Floats weight = exponential(load(weights + i) - most);
        store(weights + i, weight);
        of_block += __builtin_convertvector(weight, Doubles);
      }
      sums[b] = 0;
      for (int i = 0; i < LANES; ++i)
        sums[b] += of_block[i];
      total += sums[b];
    }
    const double target = uniform(d.seeds[row], d.counters[row]) * total;
    double before = 0;
    int64_t b = 0;
    for (; b + 1 < blocks && !(before + sums[b] > target); ++b)
      before += sums[b];
    int64_t token = b * BLOCK, last = std::min(d.columns, (b + 1) * BLOCK) - 1;
    while (last > token && weights[last] == 0) // added up in another order the sum may be less by its last bit
      --last;
    for (before += weights[token]; token < last && !(before > target); ++token)
      before += weights[token + 1];
    if (is_greedy)
      token = best;
    d.tokens[row] = token;
    float logit = is_greedy ? of_best : value(logits + token) / d.temperature;
    d.logprobs[row] = (logit - most) - (float)std::log(total);
  }
}

FOR_EACH_PROCESSOR void draw_float(const float *logits, const Draws &d, float *weights, double *sums) { draw(logits, d, weights, sums); }
FOR_EACH_PROCESSOR void draw_bfloat16(const BFloat16 *logits, const Draws &d, float *weights, double *sums) {
  draw(logits, d, weights, sums);
}
FOR_EACH_PROCESSOR void rms_norm_float(const float *x, const float *w, float *out, int64_t rows, int64_t width, float epsilon) {
  rms_norm(x, w, out, rows, width, epsilon);
}
FOR_EACH_PROCESSOR void rms_norm_bfloat16(const float *x, const float *w, BFloat16 *out, int64_t rows, int64_t width, float epsilon) {
  rms_norm(x, w, out, rows, width, epsilon);
}
FOR_EACH_PROCESSOR void rotate_float(float *h, const float *cos, const float *sin, int64_t rows, int64_t count, int64_t stride, int64_t size) {
  rotate(h, cos, sin, rows, count, stride, size);
}
FOR_EACH_PROCESSOR void rotate_bfloat16(BFloat16 *h, const float *cos, const float *sin, int64_t rows, int64_t count, int64_t stride, int64_t size) {
  rotate(h, cos, sin, rows, count, stride, size);
}
FOR_EACH_PROCESSOR void silu_mul_float(const float *gate_up, float *out, int64_t rows, int64_t width) { silu_mul(gate_up, out, rows, width); }
FOR_EACH_PROCESSOR void silu_mul_bfloat16(const BFloat16 *gate_up, BFloat16 *out, int64_t rows, int64_t width) {
  silu_mul(gate_up, out, rows, width);
}
FOR_EACH_PROCESSOR bool attend_float(const Attention &a, float *buffer) { return attend<float>(a, buffer); }
FOR_EACH_PROCESSOR bool attend_bfloat16(const Attention &a, float *buffer) { return attend<BFloat16>(a, buffer); }

// The functions that Python calls: addresses and sizes as integers, checked in kernels.py.

PyObject *py_rms_norm(PyObject *, PyObject *args) {
  int is_half;
  long long x, w, out, rows, width;
  double epsilon;
  if (!PyArg_ParseTuple(args, "pLLLLLd", &is_half, &x, &w, &out, &rows, &width, &epsilon))
    return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  if (is_half)
    rms_norm_bfloat16((const float *)x, (const float *)w, (BFloat16 *)out, rows, width, (float)epsilon);
  else
    rms_norm_float((const float *)x, (const float *)w, (float *)out, rows, width, (float)epsilon);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

PyObject *py_rotate(PyObject *, PyObject *args) {
  int is_half;
  long long heads, cos, sin, rows, count, stride, size;
  if (!PyArg_ParseTuple(args, "pLLLLLLL", &is_half, &heads, &cos, &sin, &rows, &count, &stride, &size))
    return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  if (is_half)
    rotate_bfloat16((BFloat16 *)heads, (const float *)cos, (const float *)sin, rows, count, stride, size);
  else
    rotate_float((float *)heads, (const float *)cos, (const float *)sin, rows, count, stride, size);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

PyObject *py_silu_mul(PyObject *, PyObject *args) {
  int is_half;
  long long gate_up, out, rows, width;
  if (!PyArg_ParseTuple(args, "pLLLL", &is_half, &gate_up, &out, &rows, &width))
    return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  if (is_half)
    silu_mul_bfloat16((const BFloat16 *)gate_up, (BFloat16 *)out, rows, width);
  else
    silu_mul_float((const float *)gate_up, (float *)out, rows, width);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

PyObject *py_attend(PyObject *, PyObject *args) {
  int is_half;
  Attention a;
  long long n[20];
  if (!PyArg_ParseTuple(args, "pLLLLLLLLLLLLLLLLLLLLd", &is_half, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9, n + 10,
                        n + 11, n + 12, n + 13, n + 14, n + 15, n + 16, n + 17, n + 18, n + 19, &a.scale))
    return nullptr;
  int64_t *fields = &a.query;
  std::copy(n, n + 20, fields);
  bool is_within;
  Py_BEGIN_ALLOW_THREADS;
  int64_t columns = a.shared_width + a.own_width + 2 * LANES;
  std::vector<float> buffer(4 * (2 * a.size + columns)); // of four queries: themselves, their results, their scores
  is_within = is_half ? attend_bfloat16(a, buffer.data()) : attend_float(a, buffer.data());
  Py_END_ALLOW_THREADS;
  if (!is_within) {
    PyErr_SetString(PyExc_IndexError, "a row lies outside the keys and values");
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject *py_draw(PyObject *, PyObject *args) {
  int is_half;
  long long logits, seeds, counters, rows, columns, tokens, logprobs;
  double temperature;
  if (!PyArg_ParseTuple(args, "pLLLLLLLd", &is_half, &logits, &seeds, &counters, &rows, &columns, &tokens, &logprobs, &temperature))
    return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  Draws d = {(const int64_t *)seeds, (const int64_t *)counters, rows, columns, (int64_t *)tokens, (float *)logprobs, (float)temperature};
  std::vector<float> weights(columns + BLOCK);
  std::vector<double> sums(columns / BLOCK + 1);
  if (is_half)
    draw_bfloat16((const BFloat16 *)logits, d, weights.data(), sums.data());
  else
    draw_float((const float *)logits, d, weights.data(), sums.data());
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"draw", py_draw, METH_VARARGS, nullptr},
    {"rms_norm", py_rms_norm, METH_VARARGS, nullptr},
    {"rotate", py_rotate, METH_VARARGS, nullptr},
    {"silu_mul", py_silu_mul, METH_VARARGS, nullptr},
    {"attend", py_attend, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit__kernels() {
  PyObject *made = PyModule_Create(&module);
  if (made && PyModule_AddIntConstant(made, "VERSION", 1) == 0) // that of kernels.py
    return made;
  Py_XDECREF(made);
  return nullptr;
}
