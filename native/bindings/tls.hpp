// native/bindings/tls.hpp — what an engine of a secured run is given.
// Ownership: values.
// Threads:   with the GIL.
// Errors:    EngineFailure "usage" for material that cannot be used.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <tuple>

#include "pccl/engine.hpp"

namespace pccl {

using TlsTuple =
    std::tuple<nanobind::bytes, nanobind::bytes, nanobind::bytes>;  // certificate, key, CA: PEM

std::shared_ptr<const TlsContext> to_tls(const TlsTuple& material);
void bind_tls(nanobind::module_& module, nanobind::class_<Engine>& engine);

}  // namespace pccl
