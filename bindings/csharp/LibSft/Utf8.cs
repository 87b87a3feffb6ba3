using System;
using System.Runtime.InteropServices;
using System.Text;

namespace LibSft
{
    /// <summary>Strings to and from the library: UTF-8, NUL-terminated.</summary>
    internal static class Utf8
    {
        // Half of a surrogate pair is an ArgumentException, not a question mark in a path.
        private static readonly UTF8Encoding Strict = new UTF8Encoding(false, true);

        /// <summary>The bytes of a text, without a NUL at the end.</summary>
        internal static byte[] Bytes(string text, string parameter)
        {
            if (text == null) throw new ArgumentNullException(parameter);
            return Strict.GetBytes(text);
        }

        /// <summary>The bytes of a text with a NUL at the end; a NUL inside would cut it and is refused.</summary>
        internal static byte[] Terminated(string text, string parameter)
        {
            byte[] bytes = Bytes(text, parameter);
            if (Array.IndexOf(bytes, (byte)0) >= 0)
            {
                throw new ArgumentException("the text holds the character U+0000", parameter);
            }
            Array.Resize(ref bytes, bytes.Length + 1);
            return bytes;
        }

        /// <summary>A copy of a text of the library's; null for NULL.</summary>
        internal static string Text(IntPtr at)
        {
            if (at == IntPtr.Zero) return null;
            int length = 0;
            while (Marshal.ReadByte(at, length) != 0) length++;
            var bytes = new byte[length];
            Marshal.Copy(at, bytes, 0, length);
            return Encoding.UTF8.GetString(bytes);
        }

        /// <summary>A copy of a text that the library gave away, which is freed.</summary>
        internal static string Taken(IntPtr at)
        {
            try
            {
                return Text(at);
            }
            finally
            {
                Native.sft_string_free(at);
            }
        }
    }
}
