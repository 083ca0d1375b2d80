// The parts of a layer's forward and backward between its matrix products, each one pass over memory, on several threads and without
// Python's lock. rl/forward/cpu_kernels.py has what each computes. Numbers are float or bfloat16 in memory and float in registers.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <vector>

#include "../../rollout/engine/vectors.h"

namespace {

constexpr int64_t NUMBERS_PER_THREAD = 1 << 14; // with fewer, waking a thread takes longer than the work

// Calls work(begin, end, thread) for parts of 0 .. rows - 1, on threads of torch's own pool, which wait for work.
template <class F> void in_threads(int64_t rows, int64_t width, int64_t threads, F work) {
  int64_t count = std::max<int64_t>(1, std::min({threads, rows, rows * width / NUMBERS_PER_THREAD}));
#pragma omp parallel for num_threads(count) schedule(static, 1)
  for (int64_t t = 0; t < count; ++t)
    work(rows * t / count, rows * (t + 1) / count, t);
}

// As load and store, of the first `count` numbers at most.
template <class T> INLINE Floats load_some(const T *from, int64_t count) {
  if (count >= LANES)
    return load(from);
  T whole[LANES] = {};
  std::memcpy(whole, from, count * sizeof(T));
  return load(whole);
}

template <class T> INLINE void store_some(T *to, Floats x, int64_t count) {
  if (count >= LANES)
    return store(to, x);
  T whole[LANES];
  store(whole, x);
  std::memcpy(to, whole, count * sizeof(T));
}

INLINE Floats sigmoid(Floats x) {
  Floats negative = -x;
  return 1.0f / (1.0f + exponential(negative > all(88.0f) ? all(88.0f) : negative));
}

INLINE float inverse_root(const float *x, int64_t width, float epsilon) {
  Floats squares = {};
  for (int64_t i = 0; i < width; i += LANES) {
    Floats part = load_some(x + i, width - i);
    squares += part * part;
  }
  return 1.0f / __builtin_sqrtf(sum(squares) / width + epsilon);
}

template <class T>
INLINE void norm(const float *x, const float *weight, T *out, int64_t begin, int64_t end, int64_t width, float epsilon) {
  for (int64_t row = begin; row < end; ++row) {
    const float *from = x + row * width;
    float scale = inverse_root(from, width, epsilon);
    for (int64_t i = 0, left = width; left > 0; i += LANES, left -= LANES)
      store_some(out + row * width + i, load_some(from + i, left) * scale * load_some(weight + i, left), left);
  }
}

// With n = x / rms(x) and g = dy weight: dx = (g - n mean(g n)) / rms(x); dw += dy n
template <class T>
INLINE void norm_backward(const T *dy, const float *x, const float *weight, float *dx, float *dw, int64_t begin, int64_t end,
                          int64_t width, float epsilon) {
  for (int64_t row = begin; row < end; ++row) {
    const float *from = x + row * width;
    const T *gradient = dy + row * width;
    float scale = inverse_root(from, width, epsilon);
    Floats products = {};
    for (int64_t i = 0, left = width; left > 0; i += LANES, left -= LANES)
      products += load_some(gradient + i, left) * load_some(weight + i, left) * load_some(from + i, left);
    float mean = sum(products) * scale / width;
    for (int64_t i = 0, left = width; left > 0; i += LANES, left -= LANES) {
      Floats normed = load_some(from + i, left) * scale, d = load_some(gradient + i, left);
      store_some(dx + row * width + i, (d * load_some(weight + i, left) - normed * mean) * scale, left);
      if (dw)
        store_some(dw + i, load_some(dw + i, left) + d * normed, left);
    }
  }
}

template <class T> INLINE void gated(const T *gate, const T *up, T *out, int64_t begin, int64_t end) {
  for (int64_t i = begin, left = end - begin; left > 0; i += LANES, left -= LANES) {
    Floats g = load_some(gate + i, left);
    store_some(out + i, g * sigmoid(g) * load_some(up + i, left), left);
  }
}

// With s = sigmoid(gate): dup = dout gate s, dgate = dout up s (1 + gate (1 - s))
template <class T>
INLINE void gated_backward(const T *dout, const T *gate, const T *up, T *dgate, T *dup, int64_t begin, int64_t end) {
  for (int64_t i = begin, left = end - begin; left > 0; i += LANES, left -= LANES) {
    Floats d = load_some(dout + i, left), g = load_some(gate + i, left), s = sigmoid(g);
    store_some(dgate + i, d * load_some(up + i, left) * s * (1.0f + g * (1.0f - s)), left);
    store_some(dup + i, d * g * s, left);
  }
}

struct Softmax { // see cpu_kernels.py
  int64_t scores, error, out, first, last, heads, queries, keys, rows;
  double scale;
};

// Row r is query r % queries of `heads` x queries rows that belong to one piece; it sees the keys first .. last - 1.
template <class T> INLINE void softmax(const Softmax &s, int64_t begin, int64_t end, float *buffer) {
  for (int64_t row = begin; row < end; ++row) {
    int64_t query = row / (s.heads * s.queries) * s.queries + row % s.queries;
    int64_t first = ((const int64_t *)s.first)[query], count = ((const int64_t *)s.last)[query] - first;
    const T *scores = (const T *)s.scores + row * s.keys + first;
    const T *error = s.error ? (const T *)s.error + row * s.keys + first : nullptr;
    T *out = (T *)s.out + row * s.keys;
    for (int64_t i = 0, left = count; left > 0; i += LANES, left -= LANES) {
      Floats x = load_some(scores + i, left);
      if (error)
        x += load_some(error + i, left);
      store(buffer + i, x * (float)s.scale);
    }
    float inverse = 1.0f / exponentials(buffer, count);
    std::memset(out, 0, first * sizeof(T));
    for (int64_t i = 0, left = count; left > 0; i += LANES, left -= LANES)
      store_some(out + first + i, load(buffer + i) * inverse, left);
    std::memset(out + first + count, 0, (s.keys - first - count) * sizeof(T));
  }
}

// out = p (dp - sum p dp) scale
template <class T>
INLINE void softmax_backward(const T *p, const T *dp, T *out, int64_t begin, int64_t end, int64_t width, float scale) {
  for (int64_t at = begin * width; at < end * width; at += width) {
    Floats products = {};
    for (int64_t i = 0, left = width; left > 0; i += LANES, left -= LANES)
      products += load_some(p + at + i, left) * load_some(dp + at + i, left);
    float mean = sum(products);
    for (int64_t i = 0, left = width; left > 0; i += LANES, left -= LANES)
      store_some(out + at + i, load_some(p + at + i, left) * (load_some(dp + at + i, left) - mean) * scale, left);
  }
}

// One copy for each processor of each function and format.
#define FOR_EACH_FORMAT(T)                                                                                                             \
  FOR_EACH_PROCESSOR void run_norm(const float *x, const float *w, T *out, int64_t b, int64_t e, int64_t n, float epsilon) {           \
    norm(x, w, out, b, e, n, epsilon);                                                                                                 \
  }                                                                                                                                    \
  FOR_EACH_PROCESSOR void run_norm_backward(const T *dy, const float *x, const float *w, float *dx, float *dw, int64_t b, int64_t e,   \
                                            int64_t n, float epsilon) {                                                                \
    norm_backward(dy, x, w, dx, dw, b, e, n, epsilon);                                                                                 \
  }                                                                                                                                    \
  FOR_EACH_PROCESSOR void run_gated(const T *gate, const T *up, T *out, int64_t b, int64_t e) { gated(gate, up, out, b, e); }          \
  FOR_EACH_PROCESSOR void run_gated_backward(const T *dout, const T *gate, const T *up, T *dgate, T *dup, int64_t b, int64_t e) {      \
    gated_backward(dout, gate, up, dgate, dup, b, e);                                                                                  \
  }                                                                                                                                    \
  FOR_EACH_PROCESSOR void run_softmax(const Softmax &s, int64_t b, int64_t e, float *buffer, T *) { softmax<T>(s, b, e, buffer); }     \
  FOR_EACH_PROCESSOR void run_softmax_backward(const T *p, const T *dp, T *out, int64_t b, int64_t e, int64_t n, float scale) {        \
    softmax_backward(p, dp, out, b, e, n, scale);                                                                                      \
  }
FOR_EACH_FORMAT(float)
FOR_EACH_FORMAT(BFloat16)

template <class T> void norm_in_threads(const long long *n, double epsilon) {
  in_threads(n[3], n[4], n[5], [=](int64_t b, int64_t e, int64_t) {
    run_norm((const float *)n[0], (const float *)n[1], (T *)n[2], b, e, n[4], (float)epsilon);
  });
}

template <class T> void norm_backward_in_threads(const long long *n, double epsilon) {
  in_threads(n[5], n[6], n[7], [=](int64_t b, int64_t e, int64_t thread) {
    float *dw = n[4] ? (float *)n[4] + thread * n[6] : nullptr;
    run_norm_backward((const T *)n[0], (const float *)n[1], (const float *)n[2], (float *)n[3], dw, b, e, n[6], (float)epsilon);
  });
}

template <class T> void gated_in_threads(const long long *n, double) {
  in_threads(n[3], 1, n[4], [=](int64_t b, int64_t e, int64_t) { run_gated((const T *)n[0], (const T *)n[1], (T *)n[2], b, e); });
}

template <class T> void gated_backward_in_threads(const long long *n, double) {
  in_threads(n[5], 1, n[6], [=](int64_t b, int64_t e, int64_t) {
    run_gated_backward((const T *)n[0], (const T *)n[1], (const T *)n[2], (T *)n[3], (T *)n[4], b, e);
  });
}

template <class T> void softmax_in_threads(const long long *n, double scale) {
  Softmax s = {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], scale};
  in_threads(s.rows, s.keys, n[9], [=](int64_t b, int64_t e, int64_t) {
    std::vector<float> buffer(s.keys + LANES);
    run_softmax(s, b, e, buffer.data(), (T *)nullptr);
  });
}

template <class T> void softmax_backward_in_threads(const long long *n, double scale) {
  in_threads(n[3], n[4], n[5], [=](int64_t b, int64_t e, int64_t) {
    run_softmax_backward((const T *)n[0], (const T *)n[1], (T *)n[2], b, e, n[4], (float)scale);
  });
}

// A function that Python calls with whether the numbers are bfloat16, with addresses and sizes, checked in cpu_kernels.py, and a number.
using Compute = void (*)(const long long *, double);
template <Compute OF_FLOAT, Compute OF_BFLOAT16> PyObject *called(PyObject *, PyObject *args) {
  int is_half;
  PyObject *integers;
  double number;
  if (!PyArg_ParseTuple(args, "pO!d", &is_half, &PyTuple_Type, &integers, &number))
    return nullptr;
  long long n[10] = {};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(integers) && i < 10; ++i)
    n[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(integers, i));
  if (PyErr_Occurred())
    return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  (is_half ? OF_BFLOAT16 : OF_FLOAT)(n, number);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

#define FUNCTION(name, in_threads) {name, called<in_threads<float>, in_threads<BFloat16>>, METH_VARARGS, nullptr}
PyMethodDef methods[] = {
    FUNCTION("norm", norm_in_threads),
    FUNCTION("norm_backward", norm_backward_in_threads),
    FUNCTION("gated", gated_in_threads),
    FUNCTION("gated_backward", gated_backward_in_threads),
    FUNCTION("softmax", softmax_in_threads),
    FUNCTION("softmax_backward", softmax_backward_in_threads),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu_kernels", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit__cpu_kernels() {
  PyObject *made = PyModule_Create(&module);
  if (made && PyModule_AddIntConstant(made, "VERSION", 1) == 0) // that of cpu_kernels.py
    return made;
  Py_XDECREF(made);
  return nullptr;
}
