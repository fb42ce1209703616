// The two ways into an operator's host function, made from its signature.
//
// boxed() is what torch's dispatcher calls: all that goes through torch.ops, with fake tensors,
// modes, torch.compile. direct() is a function of Python's for plain tensors, of which it borrows
// what it needs through DLPack's C interface in a tenth of the dispatcher's time. What isn't plain
// it hands to the operator of torch.ops that it is bound to.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "ops/python.h"
#include "ops/stable.h"
#include "ops/tensor.h"

namespace lightvl {
namespace detail {

// What keeps an argument alive while its boxed call lasts.
template <class T>
struct Owner {
  using type = T;
};
template <>
struct Owner<Tensor> {
  using type = torch::stable::Tensor;
};
template <>
struct Owner<std::optional<Tensor>> {
  using type = std::optional<torch::stable::Tensor>;
};
template <>
struct Owner<std::vector<Tensor>> {
  using type = std::vector<torch::stable::Tensor>;
};

template <class T>
T view(const T& value) {
  return value;
}
inline Tensor view(const torch::stable::Tensor& tensor) { return Tensor(tensor); }
inline std::optional<Tensor> view(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? std::optional(Tensor(*tensor)) : std::nullopt;
}
inline std::vector<Tensor> view(const std::vector<torch::stable::Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}

template <auto f, class Signature = decltype(f)>
struct Call;

template <auto f, class... Parameters>
struct Call<f, void (*)(Parameters...)> {
  template <class T>
  using Value = std::remove_cvref_t<T>;

  static void boxed(StableIValue* stack, uint64_t, uint64_t) {
    [&]<size_t... i>(std::index_sequence<i...>) {
      const std::tuple<typename Owner<Value<Parameters>>::type...> owners{
          torch::stable::detail::to<typename Owner<Value<Parameters>>::type>(stack[i])...};
      f(view(std::get<i>(owners))...);
    }(std::index_sequence_for<Parameters...>());
  }

  static PyObject* direct(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
    if (count != sizeof...(Parameters) || !python::are_plain(arguments, count)) {
      return python::dispatch(self, arguments, count);
    }
    return [&]<size_t... i>(std::index_sequence<i...>) {
      try {
        const std::tuple<Value<Parameters>...> values{
            python::Argument<Value<Parameters>>::from(arguments[i])...};
        return python::run([&] { f(std::get<i>(values)...); });
      } catch (const python::NotPlain&) {
        return python::dispatch(self, arguments, count);
      }
    }(std::index_sequence_for<Parameters...>());
  }
};

}  // namespace detail

// Registers `f` as operator `name` for one of the dispatcher's keys.
template <auto f, class Library>
void implement(Library& library, const char* name) {
  library.impl(name, detail::Call<f>::boxed);
  python::add_function(name, detail::Call<f>::direct);
}

}  // namespace lightvl
