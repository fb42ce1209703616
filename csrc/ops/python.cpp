// The Python module `lightvl._C`: binds the direct functions of the operators.
#include "ops/python.h"

#include <string_view>

#include "ops/cuda.h"
#include "ops/dlpack.h"

namespace lightvl::python {
namespace {

std::vector<PyMethodDef>& functions() {
  static std::vector<PyMethodDef> all;
  return all;
}

// What is asked for at every call, found when the module is loaded.
struct Torch {
  const dlpack::Exchange* exchange = nullptr;
  PyObject* tensor_type = nullptr;
  PyObject* parameter_type = nullptr;
  PyObject* num_modes = nullptr;  // torch_dispatch modes that watch calls
} torch_;

ScalarType scalar_type(const dlpack::Tensor& view) {
  switch (view.type_code << 8 | view.type_bits) {
    case dlpack::kFloat << 8 | 32:
      return ScalarType::Float;
    case dlpack::kBFloat << 8 | 16:
      return ScalarType::BFloat16;
    case dlpack::kFloat << 8 | 16:
      return ScalarType::Half;
    case dlpack::kUInt << 8 | 8:
      return ScalarType::Byte;
    case dlpack::kInt << 8 | 16:
      return ScalarType::Short;
    case dlpack::kInt << 8 | 32:
      return ScalarType::Int;
    case dlpack::kInt << 8 | 64:
      return ScalarType::Long;
    default:
      return ScalarType::Undefined;
  }
}

bool is_plain(PyObject* object) {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type == torch_.tensor_type || type == torch_.parameter_type || object == Py_None) return true;
  if (PyFloat_CheckExact(object) || PyLong_Check(object)) return true;
  if (!PyList_CheckExact(object)) return false;
  for (Py_ssize_t i = 0; i < PyList_Size(object); ++i) {
    if (!is_plain(PyList_GetItem(object, i))) return false;
  }
  return true;
}

bool is_watched() {
  PyObject* const count = PyObject_CallNoArgs(torch_.num_modes);
  const bool watched = count == nullptr || PyLong_AsLong(count) != 0;
  Py_XDECREF(count);
  PyErr_Clear();
  return watched;
}

// bind(name, operator): the direct function that hands to `operator` what isn't plain.
PyObject* bind(PyObject*, PyObject* arguments) {
  const char* name = nullptr;
  PyObject* callable = nullptr;
  if (!PyArg_ParseTuple(arguments, "sO", &name, &callable)) return nullptr;
  for (PyMethodDef& function : functions()) {
    if (torch_.exchange != nullptr && std::string_view(function.ml_name) == name) {
      return PyCFunction_New(&function, callable);
    }
  }
  Py_INCREF(callable);
  return callable;
}

PyMethodDef module_functions[] = {{"bind", bind, METH_VARARGS, nullptr}, {}};
PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, module_functions, nullptr, nullptr, nullptr, nullptr,
};

PyObject* attribute(const char* module, const char* name) {
  PyObject* const found = PyImport_ImportModule(module);
  PyObject* const value = found ? PyObject_GetAttrString(found, name) : nullptr;
  Py_XDECREF(found);
  return value;
}

// False with a Python error if torch lacks something; without DLPack's interface nothing is direct.
bool find_torch() {
  torch_.tensor_type = attribute("torch", "Tensor");
  torch_.parameter_type = attribute("torch.nn", "Parameter");
  torch_.num_modes = attribute("torch._C", "_len_torch_dispatch_stack");
  if (PyErr_Occurred() != nullptr) return false;
  PyObject* const capsule = PyObject_GetAttrString(torch_.tensor_type, "__dlpack_c_exchange_api__");
  if (capsule != nullptr) {
    const void* const table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    const auto* const exchange = static_cast<const dlpack::Exchange*>(table);
    if (exchange != nullptr && exchange->major_version == 1) torch_.exchange = exchange;
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  return true;
}

}  // namespace

void add_function(const char* name, Function* function) {
  for (const PyMethodDef& known : functions()) {
    if (std::string_view(known.ml_name) == name) return;
  }
  const auto pointer = reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
  functions().push_back({name, pointer, METH_FASTCALL, nullptr});
}

bool are_plain(PyObject* const* arguments, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!is_plain(arguments[i])) return false;
  }
  return !is_watched();
}

PyObject* dispatch(PyObject* callable, PyObject* const* arguments, Py_ssize_t count) {
  PyErr_Clear();
  PyObject* const tuple = PyTuple_New(count);
  if (tuple == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    Py_INCREF(arguments[i]);
    PyTuple_SetItem(tuple, i, arguments[i]);
  }
  PyObject* const result = PyObject_CallObject(callable, tuple);
  Py_DECREF(tuple);
  return result;
}

Tensor borrow(PyObject* tensor) {
  dlpack::Tensor view;
  if (torch_.exchange->view(tensor, &view) != 0) throw NotPlain();
  const bool on_cpu = view.device_type == dlpack::kCpu;
  if (!on_cpu && !(kCudaBuild && view.device_type == dlpack::kCuda)) throw NotPlain();
  const Tensor borrowed(static_cast<char*>(view.data) + view.byte_offset,
                        {view.shape, static_cast<size_t>(view.ndim)}, view.strides,
                        scalar_type(view), on_cpu ? Tensor::kCpu : view.device_id);
  if (view.data == nullptr && borrowed.numel() > 0) throw NotPlain();
  return borrowed;
}

}  // namespace lightvl::python

PyMODINIT_FUNC PyInit__C() {
  using namespace lightvl::python;
  return find_torch() ? PyModule_Create(&module_definition) : nullptr;
}
