// Arguments from Python without torch's dispatcher.
#pragma once

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include <exception>
#include <optional>
#include <stdexcept>
#include <vector>

#include "ops/tensor.h"

namespace lightvl::python {

// An argument that only torch's dispatcher can deal with, if only by an error.
struct NotPlain {};

// Lets other Python threads run while it lives.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* state_;
};

using Function = PyObject*(PyObject* self, PyObject* const* arguments, Py_ssize_t count);

// Names a function for `_C.bind`.
void add_function(const char* name, Function* function);

// Whether all are numbers, None or tensors without ways of their own, and nobody watches calls.
bool are_plain(PyObject* const* arguments, Py_ssize_t count);

// Calls the operator of torch.ops.
PyObject* dispatch(PyObject* callable, PyObject* const* arguments, Py_ssize_t count);

// What an operator sees of a tensor in the CPU's memory or a GPU's.
Tensor borrow(PyObject* tensor);

template <class T>
struct Argument;
template <>
struct Argument<Tensor> {
  static Tensor from(PyObject* object) { return borrow(object); }
};
template <>
struct Argument<double> {
  static double from(PyObject* object) {
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred() != nullptr) throw NotPlain();
    return value;
  }
};
template <>
struct Argument<int64_t> {
  static int64_t from(PyObject* object) {
    const int64_t value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred() != nullptr) throw NotPlain();
    return value;
  }
};
template <>
struct Argument<bool> {
  static bool from(PyObject* object) { return PyObject_IsTrue(object) == 1; }
};
template <class T>
struct Argument<std::optional<T>> {
  static std::optional<T> from(PyObject* object) {
    if (object == Py_None) return std::nullopt;
    return Argument<T>::from(object);
  }
};
template <class T>
struct Argument<std::vector<T>> {
  static std::vector<T> from(PyObject* object) {
    std::vector<T> values;
    for (Py_ssize_t i = 0; i < PyList_Size(object); ++i) {
      values.push_back(Argument<T>::from(PyList_GetItem(object, i)));
    }
    if (PyErr_Occurred() != nullptr) throw NotPlain();
    return values;
  }
};

// Runs an operator while other Python threads go on; returns None, or a null pointer with the
// Python error that stands for what it threw.
template <class F>
PyObject* run(F&& f) {
  try {
    const WithoutLock unlocked;
    f();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

}  // namespace lightvl::python
