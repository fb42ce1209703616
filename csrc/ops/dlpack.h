// DLPack's C interface as far as it is used here: a stable layout, the same for every framework.
// Source: the DLPack specification, version 1.3, "C Exchange API".
#pragma once

#include <cstdint>

namespace lightvl::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4 };

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Exchange {
  uint32_t major_version, minor_version;
  const Exchange* previous;
  void* allocate;
  void* to_managed;
  void* from_managed;
  // Fills what is borrowed from a tensor of Python's; -1 and a Python error if it can't.
  int (*view)(void* object, Tensor* view);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace lightvl::dlpack
