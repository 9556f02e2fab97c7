// Makes a library of kernels importable: importing it registers them. There is nothing else in it.
#include <Python.h>

#define CONCAT(a, b) a##b
#define INIT(name) CONCAT(PyInit_, name)
#define QUOTE(a) #a
#define NAME(name) QUOTE(name)

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, NAME(TORCH_EXTENSION_NAME), nullptr, -1, nullptr,
    nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC INIT(TORCH_EXTENSION_NAME)() { return PyModule_Create(&module); }
