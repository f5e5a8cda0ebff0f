"""Triton's interpreter, which runs a kernel on a CPU, made to work with current NumPy."""


def let_numpy_arrays_count():
    """Triton 3.6's interpreter calls int() on an array of one element; NumPy 2.4 refuses that."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
